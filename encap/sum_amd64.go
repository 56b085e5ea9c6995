package encap

import "golang.org/x/sys/cpu"

// vectorBlock is what a round of the vector loop takes, in bytes.
const vectorBlock = 128

// vectorSum reports whether this CPU has the instructions of sumVector. They
// came with Haswell and Excavator; GODEBUG=cpu.avx2=off does without them.
var vectorSum = cpu.X86.HasAVX2

// sumVector returns the sum of the n bytes at p as 32-bit words in the byte
// order of the machine, not folded. n is a positive multiple of vectorBlock and
// less than 16 GiB, so that no lane of 64 bits overflows.
//
//go:noescape
func sumVector(p *byte, n int) uint64
