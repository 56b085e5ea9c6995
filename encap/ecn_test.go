package encap

import (
	"bytes"
	"slices"
	"testing"
)

// RFC 6040 §4.2, figure 4.
func TestMergeECNIsTheTableOfRFC6040(t *testing.T) {
	const drop = 0xff
	table := [4][4]byte{ // [inner][outer], both in the order of the codepoints
		ecnNotECT: {ecnNotECT: ecnNotECT, ecnECT1: ecnNotECT, ecnECT0: ecnNotECT, ecnCE: drop},
		ecnECT1:   {ecnNotECT: ecnECT1, ecnECT1: ecnECT1, ecnECT0: ecnECT1, ecnCE: ecnCE},
		ecnECT0:   {ecnNotECT: ecnECT0, ecnECT1: ecnECT1, ecnECT0: ecnECT0, ecnCE: ecnCE},
		ecnCE:     {ecnNotECT: ecnCE, ecnECT1: ecnCE, ecnECT0: ecnCE, ecnCE: ecnCE},
	}
	for _, p := range []packet{tcp4(20), udp6(20), tcp4(20).with(func(p *packet) { p.ipOpts = pattern(8) })} {
		for inner, row := range table {
			for outer, want := range row {
				for _, dscp := range []uint8{0, 0xb8, 0xfc} {
					p.tos = dscp | uint8(inner)
					b := p.bytes()
					var h Header
					Parse(b, &h)
					if ok := MergeECN(b, &h, 0xfc-dscp|uint8(outer)); ok != (want != drop) {
						t.Errorf("inner %02b, outer %02b: kept %v", inner, outer, ok)
						continue
					}
					p.tos = dscp | want
					if want == drop {
						p.tos = dscp | uint8(inner) // as it came
					}
					if !bytes.Equal(b, p.bytes()) || h.TOS != p.tos {
						t.Errorf("inner %02b, outer %02b, DSCP %#02x:\n got % x\nwant % x", inner, outer, dscp, b[:20], p.bytes()[:20])
					}
				}
			}
		}
	}
}

func TestOuterTOSCopiesECNAndHidesDSCP(t *testing.T) {
	for tos := range 256 {
		if got := OuterTOS(uint8(tos)); got != uint8(tos)&3 {
			t.Errorf("%#02x becomes %#02x", tos, got)
		}
	}
}

func TestMergeECNUpdatesTheChecksumOfEveryHeader(t *testing.T) {
	for id := range 1 << 16 {
		b := tcp4(0).with(func(p *packet) { p.tos, p.id = ecnECT0, uint16(id) }).bytes()
		var h Header
		Parse(b, &h)
		MergeECN(b, &h, ecnCE)
		if refSum(b[:20]) != 0xffff {
			t.Fatalf("ID %#04x: checksum wrong in % x", id, b[:20])
		}
	}
}

func TestMergeECNDoesNotRepairADamagedHeader(t *testing.T) {
	good := tcp4(5).with(func(p *packet) { p.tos = ecnECT0 }).bytes()
	for at := range 20 {
		for bit := range 8 {
			b := slices.Clone(good)
			b[at] ^= 1 << bit
			var h Header
			if !Parse(b, &h) || h.TOS&ecnMask == ecnNotECT {
				continue
			}
			MergeECN(b, &h, ecnCE)
			if refSum(b[:20]) == 0xffff {
				t.Errorf("bit %d of byte %d was damaged, now the checksum is right", bit, at)
			}
		}
	}
}
