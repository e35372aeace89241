"""What several test modules need: real servers, real pictures, real weights, and fakes that can be held."""

import os

# Read by OpenMP when torch is imported: threads that spin while they wait starve the tests of a small machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Nor may each of the many servers here start a compiler. Those that are to compile say so.
os.environ["LIKEWISE_COMPILE"] = "off"
