"""From encoded images to vectors: two gates with fair queues, decode threads, and a thread for each device."""
