"""Triton kernels for GPUs: masks as bits, gradients that never stand in memory, and survivors alone.

    bits            masks, one bit a weight
    masked_adam     a weight's gradient, its mask and Adam in one kernel
    masked_linear   linear layers under masks, and ReLU, of many networks at once, and their gradients
    block_linear    a linear layer of the blocks that are left, and its gradients
    resident        whole trainings on survivors alone, many steps a launch, one program a network

They are proven by Triton's interpreter and assembled for compute capabilities 8.0, 9.0 and 10.0 in the tests, and have
not run on a card. No engine uses them until a measurement on a card shows that they pay (`lthfunc benchmark kernels`).

What is imported here needs torch alone; the kernels themselves (`kernels/`) need Triton, and are imported at the first
call, which says so in one line where Triton is missing.
"""
