package doctor

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/twillnet/twill/internal/lab/testkit"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func TestFindingsFitIn80Columns(t *testing.T) {
	for golden, findings := range map[string][]Finding{
		"testdata/running.txt": {
			{"daemon", OK, "twilld v0.1.0 is ready, pid 4242", ""},
			{"rp-filter", Bad, "net/ipv4/conf/flannel.1/rp_filter is 1, and answers of 192.0.2.12 take another way than packets to it: the kernel drops them", "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"},
			{"forward-policy", Bad, "FORWARD of iptables drops packets of pods: -A FORWARD -s 10.5.0.0/16 -p tcp -m tcp --dport 80 -m comment --comment \"no web between pods\" -j REJECT", `iptables -D FORWARD -s 10.5.0.0/16 -p tcp -m tcp --dport 80 -m comment --comment "no web between pods" -j REJECT`},
			{"peers", Warn, "fd00:10:64::12 answers no ping at its public address\n10.5.3.0/24 has no address to ping", ""},
		},
		"testdata/bare.txt": {
			{"running", OK, "no twilld runs here", ""},
			{"udp-port", OK, "the default ports of the backends are free, or a twilld has them", ""},
			{"forwarding", Bad, "net/ipv4/ip_forward is 0: the kernel does not forward packets to pods", "sysctl -w net/ipv4/ip_forward=1"},
		},
	} {
		var page bytes.Buffer
		testkit.Must(t, Write(&page, findings))
		for line := range strings.Lines(page.String()) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > 80 && !strings.Contains(line, "→") {
				t.Errorf("%s: %d columns: %s", golden, n, line)
			}
		}
		if *update {
			testkit.Must(t, os.WriteFile(golden, page.Bytes(), 0o644))
		}
		if want, err := os.ReadFile(golden); err != nil || string(want) != page.String() {
			t.Errorf("%s: %v, got\n%swant\n%s", golden, err, &page, want)
		}
	}
}
