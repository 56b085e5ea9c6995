package udp

import (
	"fmt"
	"math"

	"github.com/twillnet/twill/lease"
)

// Options are the options of the network configuration that the udp backend
// knows.
type Options struct {
	// Port is the UDP port of all nodes: "Port" where the configuration names
	// this backend, "UDPPort" where it names another that this one stands in
	// for.
	Port uint16
	// MTU is that of the datagrams' way, in bytes with their IP header; 0: the
	// interface's.
	MTU int
	// DirectRouting asks for plain routes to peers on the same link.
	DirectRouting bool
}

// defaultPort is flannel's.
const defaultPort = 8285

// OptionsOf returns the options of c. Its error names the one that is wrong.
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
