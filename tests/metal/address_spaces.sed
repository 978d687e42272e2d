# MSL to C++ for OpenCL, which has Metal's address spaces: attributes go, and threadgroup arrays become pointers, because
# OpenCL wants them in a kernel's outermost scope and templates are none.
s/\[\[[^]]*\]\]//g
s/^([[:space:]]*)threadgroup ([A-Za-z_0-9]+) ([A-Za-z_0-9]+)\[[^;]*;/\1threadgroup \2 *\3 = 0;/
