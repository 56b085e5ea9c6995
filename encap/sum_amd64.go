package encap

import "golang.org/x/sys/cpu"

// vectorBlock is the number of bytes that one iteration of the vector loop consumes.
const vectorBlock = 128

// vectorSum reports whether this CPU has the instructions that sumVector uses. They
// came with Haswell and Excavator; GODEBUG=cpu.avx2=off disables them.
var vectorSum = cpu.X86.HasAVX2

// sumVector returns the sum of the n bytes at p as 32-bit words in the byte
// order of the machine, not folded. n is a positive multiple of vectorBlock and
// less than 16 GiB, so that no lane of 64 bits overflows.
//
//go:noescape
func sumVector(p *byte, n int) uint64
