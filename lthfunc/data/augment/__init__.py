"""Random changes of training inputs, as pure functions of the batch and a key; they run inside the step."""
