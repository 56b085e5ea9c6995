package backend

import (
	"fmt"
	"slices"
	"strings"

	"github.com/twillnet/twill/internal/backend/udp"
	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/lease"
)

// Backend types of a network configuration.
const (
	typeAlloc  = "alloc"
	typeAuto   = "auto"
	typeHostGW = string(HostGW)
	typeUDP    = string(UDP)
	typeVXLAN  = string(VXLAN)
)

// Types are the backend types that a network configuration, or a node's
// override of it, may name.
var Types = []string{typeAlloc, typeAuto, typeHostGW, typeUDP, typeVXLAN}

// stockOnly are the backend types of flannel that twilld does not have.
var stockOnly = []string{"extension", "ipip", "ipsec", "tencent-vpc", "wireguard"}

// Settings is what a network configuration asks of the data plane of a node.
type Settings struct {
	Type          string // one of Types
	UDP           udp.Options
	VXLAN         vxlan.Options
	DirectRouting bool // plain routes to peers on the link, whatever the backend
	Overridden    bool // the type is not the network configuration's
}

// SettingsOf returns the settings of c, of whose Backend the type is overridden
// by one of Types; an empty override is none. The error names what cannot be.
//
// "Port" in c belongs to the backend that c names, an override takes none of it.
func SettingsOf(c *lease.Config, override string) (Settings, error) {
	s := Settings{Type: c.Backend.Type}
	if override != "" {
		s.Type, s.Overridden = override, true
	}
	if !slices.Contains(Types, s.Type) {
		what := "is not supported"
		if slices.Contains(stockOnly, s.Type) {
			what = "is not supported, only flannel has it"
		}
		return s, fmt.Errorf("backend type %q %s; twilld has %s: set Backend.Type in the network configuration",
			s.Type, what, strings.Join(Types, ", "))
	}
	var err error
	switch s.Type {
	case typeAlloc:
		return s, nil
	case typeHostGW:
		s.DirectRouting = true
		return s, nil
	}
	if s.UDP, err = udp.OptionsOf(c); err != nil {
		return s, err
	}
	if s.VXLAN, err = vxlan.OptionsOf(c); err != nil {
		return s, err
	}
	if c.Backend.Type == typeUDP {
		s.VXLAN.Port = 0 // what the configuration says is the other's
	}
	s.DirectRouting = s.VXLAN.DirectRouting
	return s, nil
}

// Carries says whether the node carries packets at all: of type alloc it only
// has a lease.
func (s Settings) Carries() bool { return s.Type != typeAlloc }
