"""One lowering for each operation: its instructions in the tiled layout, and those of its gradient."""
