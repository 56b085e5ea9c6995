package netlab

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// lossSteps is the resolution of Options.Loss.
const lossSteps = 100_000

// lose makes the wire drop a fraction of the IPv4 and IPv6 frames that enter it, at the
// ports, so that each host's receiver and GRO see only the remaining ones. A super-packet
// is one frame. Unlike a Relay, this works entirely in the kernel and takes almost no
// time.
func (t *Topology) lose(fraction float64) error {
	nft, err := exec.LookPath("nft")
	if err != nil {
		return fmt.Errorf("lose frames on the wire: nft is not installed (apt-get install nftables)")
	}
	var rules strings.Builder
	rules.WriteString("table netdev loss {\n")
	for _, h := range t.Hosts {
		fmt.Fprintf(&rules, "chain %[1]s { type filter hook ingress device %[1]q priority 0; policy accept;\n"+
			"meta protocol { ip, ip6 } numgen random mod %[2]d < %.0[3]f drop; }\n",
			portName(h), lossSteps, fraction*lossSteps)
	}
	rules.WriteString("}\n")
	cmd := t.wire.Command(context.Background(), nft, "-f", "-")
	cmd.Stdin = strings.NewReader(rules.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("lose frames on the wire: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
