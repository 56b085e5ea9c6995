package kernelpath

// The objects are committed, so that building twill needs no clang. "make generate"
// builds them.
//
//go:generate sh -c "exec go tool -modfile=../../../../tools/go.mod bpf2go -go-package kernelpath -output-stem path -tags !nobpf -type subnet_key -type subnet -type traffic -type subnet_kind path bpf/path.c -- -Wall -Werror -idirafter /usr/include/$(uname -m)-linux-gnu"
