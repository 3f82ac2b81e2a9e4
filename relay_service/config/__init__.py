"""What the operator says, read once and checked whole: the policy file and the settings of the process.

Everything wrong is told at once, each with where it stands, what was found and what is allowed. What
comes out are the frozen values of `relay_service.core.policy`; the core never sees pydantic or a file.
"""
