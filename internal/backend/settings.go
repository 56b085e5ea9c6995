package backend

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/twillnet/twill/internal/backend/vxlan"
	"github.com/twillnet/twill/lease"
)

// Backend types of a network configuration.
const (
	typeAlloc  = "alloc"
	TypeAuto   = "auto"
	typeHostGW = string(HostGW)
	typeUDP    = string(UDP)
	typeVXLAN  = string(VXLAN)
)

// Types are the backend types that a network configuration, or a node's
// override of it, may name.
var Types = []string{typeAlloc, TypeAuto, typeHostGW, typeUDP, typeVXLAN}

// stockOnly are the backend types of flannel that twilld does not implement.
var stockOnly = []string{"extension", "ipip", "ipsec", "tencent-vpc", "wireguard"}

// Settings is what a network configuration requests for the data plane of a
// node.
type Settings struct {
	Type          string // one of Types
	UDP           UDPOptions
	VXLAN         vxlan.Options
	DirectRouting bool // plain routes to peers on the link, whatever the backend
	Overridden    bool // the type is not that of the network configuration
}

// SettingsOf returns the settings of c, with the type of its Backend overridden
// by one of Types unless override is empty. The error names the setting that is
// invalid or unsupported.
//
// "Port" in c belongs to the backend that c names; an override does not inherit
// it.
func SettingsOf(c *lease.Config, override string) (Settings, error) {
	s := Settings{Type: c.Backend.Type}
	if override != "" {
		s.Type, s.Overridden = override, true
	}
	if !slices.Contains(Types, s.Type) {
		by := ""
		if slices.Contains(stockOnly, s.Type) {
			by = " by twilld, only by flannel"
		}
		return s, fmt.Errorf("backend type %.60q is not supported%s; set Backend.Type in the network config to one of %s",
			s.Type, by, strings.Join(Types, ", "))
	}
	var err error
	switch s.Type {
	case typeAlloc:
		return s, nil
	case typeHostGW:
		s.DirectRouting = true
		return s, nil
	}
	if s.UDP, err = udpOptionsOf(c); err != nil {
		return s, err
	}
	if s.VXLAN, err = vxlan.OptionsOf(c); err != nil {
		return s, err
	}
	if c.Backend.Type == typeUDP {
		s.VXLAN.Port = 0 // the port in the configuration belongs to another backend
	}
	s.DirectRouting = s.VXLAN.DirectRouting
	return s, nil
}

// Carries reports whether the node carries packets at all. A node of type alloc
// only has a lease.
func (s Settings) Carries() bool { return s.Type != typeAlloc }

// UDPOptions are the options of the network configuration for the udp backend.
type UDPOptions struct {
	// Port is the UDP port of all nodes: "Port" if the configuration names this
	// backend, "UDPPort" if it names another one and this backend is the
	// fallback.
	Port uint16
	// MTU is that of the underlay path, in bytes including the outer IP header;
	// 0: the interface's.
	MTU int
}

// defaultUDPPort is flannel's default.
const defaultUDPPort = 8285

// KernelPathFlag is the flag for the kernel path of the udp backend, without dashes. The
// status and the metrics use the same name.
const KernelPathFlag = "kernel-path"

// KernelInput returns the name of the interface on which packets from the kernel path
// arrive, instead of on the TUN device tun.
func KernelInput(tun string) string { return tun + "-rx" }

// udpOptionsOf returns the options of c. Its error wraps a *lease.ConfigError that
// names the option.
func udpOptionsOf(c *lease.Config) (UDPOptions, error) {
	o := struct {
		Port, UDPPort, MTU int
	}{Port: defaultUDPPort, UDPPort: defaultUDPPort}
	if err := c.Backend.Decode(&o); err != nil {
		return UDPOptions{}, err
	}
	key, port := "Port", o.Port
	if c.Backend.Type != "udp" {
		key, port = "UDPPort", o.UDPPort
	}
	if port < 1 || port > math.MaxUint16 {
		return UDPOptions{}, invalidOption(key, port, fmt.Sprintf("a port from 1 to %d, or none for %d", math.MaxUint16, defaultUDPPort))
	}
	if o.MTU < 0 || o.MTU > math.MaxUint16 {
		return UDPOptions{}, invalidOption("MTU", o.MTU, fmt.Sprintf("1 to %d bytes, or 0 for the MTU of each node's interface", math.MaxUint16))
	}
	return UDPOptions{Port: uint16(port), MTU: o.MTU}, nil
}

func invalidOption(key string, value int, want string) error {
	return fmt.Errorf("network config: %w", &lease.ConfigError{Key: "Backend." + key, Value: strconv.Itoa(value), Want: want})
}
