import hypothesis

# Compilation makes the first example slow, so no deadline; derandomized, so that a failure is everybody's failure.
hypothesis.settings.register_profile("lira", deadline=None, derandomize=True, max_examples=30)
hypothesis.settings.load_profile("lira")
