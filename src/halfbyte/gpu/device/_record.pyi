"""The hot loop of recording, in C++."""

def record(functions: tuple[int, int, int], recording: int, commands: list[tuple[int, int, int, int, int]]) -> None:
    """Record dispatches into a pass, in order; a command is (pipeline, bind group, x, y, z).

    Args:
        functions: Addresses of wgpu's SetPipeline, SetBindGroup and DispatchWorkgroups of compute passes.
        recording: Address of the pass, which is open; so are those of pipelines and bind groups valid.
    """
