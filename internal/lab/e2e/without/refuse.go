package main

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// refusal is a system call that fails as in a kernel that does not support the
// request, or that reserves it to others.
type refusal struct {
	call uint32
	args map[uint32]uint32 // by position: the arguments that the call must have
	err  unix.Errno
}

// refusals are the system calls that twilld's offloads, by the names of their flags,
// depend on.
var refusals = map[string]refusal{
	"tun-offload": {unix.SYS_IOCTL, map[uint32]uint32{1: unix.TUNSETOFFLOAD}, unix.EINVAL},
	"udp-gso":     {unix.SYS_SETSOCKOPT, map[uint32]uint32{1: unix.SOL_UDP, 2: unix.UDP_SEGMENT}, unix.ENOPROTOOPT},
	"udp-gro":     {unix.SYS_SETSOCKOPT, map[uint32]uint32{1: unix.SOL_UDP, 2: unix.UDP_GRO}, unix.ENOPROTOOPT},
	"kernel-path": {unix.SYS_BPF, nil, unix.EPERM},
}

// Offsets in struct seccomp_data of linux/seccomp.h.
const (
	callOffset = 0
	argsOffset = 16
	argSize    = 8
)

// refuse makes the kernel refuse an offload to the calling thread and to the program
// that it executes. It compares the lower halves of arguments, at the offset where a
// 64-bit little-endian machine has them.
func refuse(name string) error {
	r, ok := refusals[name]
	if !ok {
		return fmt.Errorf("-offload %s: unknown", name)
	}
	compare := []struct{ offset, want uint32 }{{callOffset, r.call}}
	for i, want := range r.args {
		compare = append(compare, struct{ offset, want uint32 }{argsOffset + i*argSize, want})
	}
	var filter []unix.SockFilter
	for i, c := range compare {
		// A mismatch jumps over the rest to the last instruction.
		rest := uint8(2 * (len(compare) - i - 1))
		filter = append(filter,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: c.offset},
			unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: c.want, Jf: rest + 1})
	}
	filter = append(filter,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(r.err)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)), 0, 0); err != nil {
		return fmt.Errorf("install a system call filter: %w", err)
	}
	return nil
}
