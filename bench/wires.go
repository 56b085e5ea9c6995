package bench

import "github.com/twillnet/twill/internal/lab/netlab"

// Wire is a kind of link that carries frames from one host to the other.
type Wire struct {
	Name  string // in --wire and JSON
	Title string
	kind  netlab.WireKind
	loss  float64 // fraction of frames
	// loads are the loads that are meaningful on this wire; nil means all. For example,
	// the rate received at less than 1 % loss is not measured on a wire that loses frames
	// itself.
	loads []string
}

// lossFraction is the fraction of frames that a wire with loss drops.
const lossFraction = 0.001

// Wires are all wires, in the order in which they are used.
var Wires = []Wire{
	{"super", "super-packets pass unsplit", netlab.Super, 0, nil},
	{"mtu", "frames of up to the MTU pass, as from a plain network card", netlab.MTU, 0, nil},
	{"super+loss", "as super, and 0.1 % of the super-packets are lost", netlab.Super, lossFraction, []string{"tcp1", "tcp4", "tcp16"}},
	{"mtu+loss", "as mtu, and 0.1 % of the frames are lost", netlab.MTU, lossFraction, []string{"tcp1", "tcp4", "tcp16"}},
}
