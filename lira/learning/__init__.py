"""One shadow model as a pure function: what it becomes, how it is trained, what it answers. Nothing of attacks or files."""
