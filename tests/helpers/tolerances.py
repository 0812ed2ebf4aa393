"""Every tolerance of the tests, set once by reasoning and never raised. Distances are relative norms, |a - b| / |b|.

Float32 has a floor: the reference itself is some 5e-7 (up to 1e-5 with sharp attention and large channels) away from
its own float64 run, and two right programs differ by as much. So both are held against float64, and ours may be at most
a fifth further away than the reference. In bfloat16 the float32 reference is the truth.
"""

FLOAT32_RATIO = 1.2  # our distance from the float64 reference / the float32 reference's
FLOAT32_CEILING = 2e-5  # and never more than this
BFLOAT16_RATIO = 1.1  # our distance from the float32 reference / the bfloat16 reference's
# Two kernels round the gradients of their scores to bfloat16 in other places: twice what is given to a value.
BFLOAT16_GRADIENT_RATIO = 2 * BFLOAT16_RATIO  # distance of a kernel's gradients from float32 ones / that of plain's
# The compiled encoder keeps residual, norms and softmax in float32, where torch rounds each of them to bfloat16.
NATIVE_BFLOAT16_RATIO = 0.7  # its distance from the float32 reference / torch's in bfloat16
SAME_PROGRAM = 1e-6  # one computation compiled in two ways (jit or not, batches of another size)
GRADIENT = 1e-4  # of each tensor's gradient from PyTorch's, both float32, each with the roundings of two passes
MESH = 1e-5  # loss and each tensor after 5 steps on a mesh: sums over devices in another order, five times over
LOGITS = 1e-4  # of the largest logit: both sides are a float32 tower and a float32 decoder, one after the other
# KL divergence in nats a token: five times what a prototype had, a sixteenth of what 8-bit weights had.
BFLOAT16_KL = (
    3e-4  # of the compiled decoder's next tokens in bfloat16 from those in float32, on a trained model's weights
)
