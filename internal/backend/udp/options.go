package udp

import (
	"fmt"
	"math"

	"github.com/twillnet/twill/lease"
)

// Options are the options of the network configuration for the udp backend.
type Options struct {
	// Port is the UDP port of all nodes: "Port" if the configuration names this
	// backend, "UDPPort" if it names another one and this backend is the
	// fallback.
	Port uint16
	// MTU is that of the underlay path, in bytes including the outer IP header;
	// 0: the interface's.
	MTU int
	// DirectRouting asks for plain routes to peers on the same link.
	DirectRouting bool
}

// defaultPort is flannel's default.
const defaultPort = 8285

// OptionsOf returns the options of c. The error names the option that is
// invalid.
func OptionsOf(c *lease.Config) (Options, error) {
	o := struct {
		Port, UDPPort, MTU int
		DirectRouting      bool
	}{Port: defaultPort, UDPPort: defaultPort}
	if err := c.Backend.Decode(&o); err != nil {
		return Options{}, err
	}
	key, port := "Port", o.Port
	if c.Backend.Type != "udp" {
		key, port = "UDPPort", o.UDPPort
	}
	if port < 1 || port > math.MaxUint16 {
		return Options{}, fmt.Errorf("network config: Backend.%s is %d; want 1 to 65535, or leave it out for %d", key, port, defaultPort)
	}
	if o.MTU < 0 || o.MTU > math.MaxUint16 {
		return Options{}, fmt.Errorf("network config: Backend.MTU is %d; want 1 to 65535, or leave it out for that of the interface", o.MTU)
	}
	return Options{Port: uint16(port), MTU: o.MTU, DirectRouting: o.DirectRouting}, nil
}
