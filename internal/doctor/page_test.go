package doctor

import (
	"bytes"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestFindingsFitIn80Columns(t *testing.T) {
	for golden, findings := range map[string][]Finding{
		"running.txt": {
			{Check: "daemon", Level: OK, Text: "twilld v0.1.0 is ready, pid 4242"},
			{Check: "rp-filter", Level: Bad, Text: "net/ipv4/conf/flannel.1/rp_filter is 1, and answers of 192.0.2.12 take another way than packets to it: the kernel drops them", Remedy: "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"},
			{Check: "forward-policy", Level: Bad, Text: "FORWARD of iptables drops packets of pods: -A FORWARD -s 10.5.0.0/16 -p tcp -m tcp --dport 80 -m comment --comment \"no web between pods\" -j REJECT", Remedy: `iptables -D FORWARD -s 10.5.0.0/16 -p tcp -m tcp --dport 80 -m comment --comment "no web between pods" -j REJECT`},
			{Check: "peers", Level: Warn, Text: "fd00:10:64::12 answers no ping at its public address\n10.5.3.0/24 has no address to ping"},
		},
		"bare.txt": {
			{Check: "running", Level: OK, Text: "twilld is not running here"},
			{Check: "udp-port", Level: OK, Text: "the default ports of the backends are free, or in use by twilld"},
			{Check: "forwarding", Level: Bad, Text: "net/ipv4/ip_forward is 0: the kernel does not forward packets to pods", Remedy: "sysctl -w net/ipv4/ip_forward=1"},
		},
	} {
		var page bytes.Buffer
		testkit.Must(t, Write(&page, findings))
		testkit.Page(t, golden, page.String())
	}
}
