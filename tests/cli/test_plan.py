"""`multipatch-jax plan`."""


def test_plan(run):
    status, out, _ = run("plan", 3000, 4000)
    assert status == 0
    assert out.splitlines()[0] == "3000 x 4000 -> 3 x 4 tiles + global = 13 tiles, 832 tokens"
    assert "1536 x 2048" in out


def test_plan_of_another_model(run, tiny):
    _, out, _ = run("plan", 3000, 4000, "--model", "Idefics3-8B-Llama3")
    assert "13 tiles, 2197 tokens" in out
    _, out, _ = run("plan", 100, 100, "--model", tiny.folder)
    assert "17 tiles, 68 tokens" in out
