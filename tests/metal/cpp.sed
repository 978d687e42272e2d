# MSL to C++: attributes go (bindings.awk has read them), and threadgroup arrays come from the threadgroup's memory.
s/\[\[[^]]*\]\]//g
s/^([[:space:]]*)threadgroup ([A-Za-z_0-9]+) ([A-Za-z_0-9]+)\[([^;]*)\];/\1\2 *\3 = msl::threadgroup_memory<\2>(\4);/
