package main

import (
	"debug/elf"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// platforms are the supported architectures, by Go's names.
var platforms = map[string]struct {
	machine elf.Machine
	variant string // as in the OCI image specification
}{
	"amd64":   {elf.EM_X86_64, ""},
	"arm64":   {elf.EM_AARCH64, "v8"},
	"arm":     {elf.EM_ARM, "v7"}, // Debian's armhf
	"riscv64": {elf.EM_RISCV, ""},
}

// platformOf returns a registry's name of an architecture.
func platformOf(arch string) (*v1.Platform, elf.Machine, error) {
	p, ok := platforms[arch]
	if !ok {
		return nil, 0, fmt.Errorf("there is no image for %q: amd64, arm64, arm or riscv64", arch)
	}
	return &v1.Platform{OS: "linux", Architecture: arch, Variant: p.variant}, p.machine, nil
}
