"""Tables and figures of the thesis (UC Berkeley EECS-2023-153), with our numbers beside its own."""
