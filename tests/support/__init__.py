"""What several test modules need: real servers, real pictures, real weights."""
