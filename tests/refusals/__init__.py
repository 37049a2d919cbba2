"""Bad input anywhere gets the documented refusal. Rule: what is tried comes from the contract itself, so that a new endpoint,
field or frame is tried without a new test, and fails here until it has a valid sample.
"""
