"""`likewise demo`: a real server, real pictures, and a report of what came of it."""
