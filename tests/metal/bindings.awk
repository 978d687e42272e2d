# For each kernel of a .metal file, a function bind_KERNEL that calls it as Metal does: each argument is what its
# attribute says, the buffer of that index or the thread's position, wherever it stands in the signature.

/^\[\[kernel\]\] void [a-z_]+\($/ {
    kernel = $3
    sub(/\($/, "", kernel)
    arguments = ""
}

kernel != "" && /[a-z_]+ \[\[[a-z_]+(\([0-9]+\))?\]\]/ {
    match($0, /\[\[[^]]*\]\]/)
    attribute = substr($0, RSTART + 2, RLENGTH - 4)
    if (attribute ~ /^buffer\(/) {
        access = $0 ~ /&[a-z_]+ \[\[/ ? "reference" : "pointer"
        sub(/^buffer/, "buffers." access, attribute)
    } else {
        attribute = "at." attribute
    }
    arguments = arguments (arguments == "" ? "" : ", ") attribute
}

kernel != "" && /\{$/ {
    print "template <typename KV, uint HEAD_DIM>"
    print "void bind_" kernel "(const msl::Buffers &buffers, const msl::Thread &at) {"
    print "    " kernel "<KV, HEAD_DIM>(" arguments ");"
    print "}"
    kernel = ""
}
