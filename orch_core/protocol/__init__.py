"""Pure: values in, values out. No I/O, clock, thread, random, torch or grpc."""
