package fastpath

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// networkHeader is the offset, in classic BPF, of the outer IP header
// (SKF_NET_OFF, include/uapi/linux/filter.h).
const networkHeader = 0xfff00000

// newSeed returns a random odd number: multiplication by it loses no bits.
func newSeed() uint32 { return rand.Uint32() | 1 }

// admitting returns the beginning of a classic BPF program: it returns refuse for a
// packet whose source is not in addrs, which must be sorted and of one family, and
// otherwise continues after its end. exact is false if it also admits other addresses.
//
// The addresses are compared by 32-bit keys. The key of an IPv4 address is the address
// itself; that of an IPv6 address is a hash, which an address that is not in addrs may
// share. If there are more than most keys, as many low bits as necessary are ignored,
// since nodes are usually numbered from a few ranges. So the program never refuses an
// address in addrs, but may admit others.
func admitting(addrs []netip.Addr, seed [4]uint32, most int, refuse uint32) (program []unix.SockFilter, exact bool) {
	keys := make([]uint32, len(addrs))
	for i, a := range addrs {
		keys[i] = keyOf(a, seed)
	}
	slices.Sort(keys)
	keys = slices.Compact(keys)
	ignored := uint32(0)
	for coarse := keys; len(keys) > most; keys = coarse {
		ignored++
		coarse = coarse[:0]
		for _, k := range keys {
			if k >>= 1; len(coarse) == 0 || coarse[len(coarse)-1] != k {
				coarse = append(coarse, k)
			}
		}
	}
	program = loadKey(addrs[0].Is4(), seed)
	if ignored > 0 {
		program = append(program, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: ignored})
	}
	t := tree{program: program, refuse: refuse}
	t.add(keys)
	for _, i := range t.admit {
		t.program[i].K = uint32(len(t.program) - i - 1)
	}
	return t.program, ignored == 0 && addrs[0].Is4()
}

// keyOf returns the key of an address.
func keyOf(a netip.Addr, seed [4]uint32) (key uint32) {
	if a.Is4() {
		b := a.As4()
		return binary.BigEndian.Uint32(b[:])
	}
	b := a.As16()
	for i, factor := range seed {
		key = (binary.BigEndian.Uint32(b[4*i:]) ^ key) * factor
		key ^= key >> 15
	}
	return key
}

// loadKey loads the key of a packet's source into the accumulator.
func loadKey(ipv4 bool, seed [4]uint32) (p []unix.SockFilter) {
	if ipv4 {
		return []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: networkHeader + 12}}
	}
	const xor = 0xa0 // BPF_XOR, since Linux 3.7
	p = append(p, unix.SockFilter{Code: unix.BPF_LDX | unix.BPF_IMM})
	for i, factor := range seed {
		p = append(p,
			unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: networkHeader + 8 + 4*uint32(i)},
			unix.SockFilter{Code: unix.BPF_ALU | xor | unix.BPF_X},
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_MUL | unix.BPF_K, K: factor},
			unix.SockFilter{Code: unix.BPF_MISC | unix.BPF_TAX},
			unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K, K: 15},
			unix.SockFilter{Code: unix.BPF_ALU | xor | unix.BPF_X},
			unix.SockFilter{Code: unix.BPF_MISC | unix.BPF_TAX},
		)
	}
	return p
}

// tree builds a search tree in a program.
type tree struct {
	program []unix.SockFilter
	refuse  uint32
	admit   []int // the jumps to the end of the program
}

// leafKeys is the number of keys that are compared one after the other.
const leafKeys = 8

// add appends the search for keys, which are sorted.
func (t *tree) add(keys []uint32) {
	if len(keys) <= leafKeys {
		for i, k := range keys {
			t.program = append(t.program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: k, Jt: uint8(len(keys) - i)})
		}
		t.program = append(t.program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: t.refuse})
		t.admit = append(t.admit, len(t.program))
		t.program = append(t.program, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA})
		return
	}
	middle := len(keys) / 2
	// A conditional jump reaches 255 instructions, JA reaches any.
	t.program = append(t.program,
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: keys[middle], Jf: 1},
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA})
	jump := len(t.program) - 1
	t.add(keys[:middle])
	t.program[jump].K = uint32(len(t.program) - jump - 1)
	t.add(keys[middle:])
}
