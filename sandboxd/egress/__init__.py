"""
The egress process: everything that plugins send out of the machine goes through it, by the rules of their policy.

It trusts the supervisor and nobody else. What a worker asks is hostile, and so is what an upstream answers.
"""
