"""What all users of a channel say of an HTTP exchange, whatever carries it: ext_proc, a program, a test case."""
