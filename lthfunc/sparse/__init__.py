"""The sparse engine: networks trained and run on the surviving weights alone, on CPUs."""
