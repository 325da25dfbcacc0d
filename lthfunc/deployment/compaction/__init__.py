"""Networks without what no path from input to output goes through."""
