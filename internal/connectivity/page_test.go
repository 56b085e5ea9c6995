package connectivity

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/testkit"
)

func nodeAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}) }

func subnetOf(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i), 0}), 24)
}

// network is a report of n nodes between which everything passes.
func network(n int) *Report {
	r := new(Report)
	for i := range n {
		h := &Hello{Facts: []Fact{{"twilld", "0.1.0"}, {"MTU", "1450"}}}
		for j := range n {
			if i == j {
				continue
			}
			h.Table = append(h.Table, Path{subnetOf(j + 1), nodeAddr(j + 1), "vxlan"})
			one := Result{From: nodeAddr(i + 1), To: nodeAddr(j + 1), Subnet: subnetOf(j + 1), Addr: subnetOf(j + 1).Addr().Next(), Backend: "vxlan"}
			for k, test := range []string{testPing, testMTU, testTCP, testUDP} {
				one.Tests = append(one.Tests, Outcome{Test: test, OK: true, Millis: 0.25 * float64(k)})
			}
			r.Results = append(r.Results, one)
		}
		r.Nodes = append(r.Nodes, NodeReport{Node: nodeAddr(i + 1), Subnets: []netip.Prefix{subnetOf(i + 1)}, Asked: true, hello: h})
	}
	return r
}

// breaks makes tests from one node to another fail.
func (r *Report) breaks(from, to int, detail string, tests ...string) {
	for i := range r.Results {
		if one := &r.Results[i]; one.From == nodeAddr(from) && one.To == nodeAddr(to) {
			for k := range one.Tests {
				for _, test := range tests {
					if o := &one.Tests[k]; o.Test == test {
						o.OK, o.Detail, o.Millis = false, detail, 0
					}
				}
			}
		}
	}
}

// ill is a network of four nodes with something of everything.
func ill() *Report {
	r := network(4)
	r.breaks(1, 3, "no answer", testPing, testMTU, testTCP, testUDP)
	r.breaks(3, 1, "no answer", testPing, testMTU, testTCP, testUDP)
	r.breaks(2, 3, "packets of up to 1350 bytes arrive, but not those of 1450", testMTU)
	r.Results = r.Results[:9] // none from the fourth
	r.Nodes[3].fail(errors.New("exit status 255: ssh: connect to host 192.0.2.4 port 22: \x1b[31mConnection refused"))
	r.Nodes[3].hello = nil
	r.Nodes[2].hello.Facts[0].Value = "0.0.9"
	r.Nodes[0].hello.Table = r.Nodes[0].hello.Table[:2]
	r.Nodes[1].hello.Table[1].Backend = "udp"
	r.Nodes[2].Findings = []doctor.Finding{{Check: "forwarding", Level: doctor.Bad, Text: "net/ipv4/ip_forward is 0: the kernel does not forward packets to pods", Remedy: "sysctl -w net/ipv4/ip_forward=1"}}
	for i := range 3 {
		r.Nodes[i].Findings = append(r.Nodes[i].Findings, doctor.Finding{Check: "clock", Level: doctor.Warn, Text: "not synchronised"})
	}
	return r
}

// TestPagesFitATerminalOf80Columns compares with the pages in testdata.
func TestPagesFitATerminalOf80Columns(t *testing.T) {
	many := network(40)
	many.breaks(7, 23, "no answer", testPing, testMTU, testTCP, testUDP)
	for from := 1; from <= 40; from++ {
		many.breaks(from, 40, "connection refused", testTCP)
	}
	for name, r := range map[string]*Report{"well": network(3), "ill": ill(), "many": many} {
		r.conclude()
		if r.OK != (name == "well") {
			t.Errorf("%s: OK is %t", name, r.OK)
		}
		var got bytes.Buffer
		testkit.Must(t, r.WritePage(&got))
		testkit.Page(t, name+".txt", got.String())
	}
}

func TestJUnitHasACaseForEachTest(t *testing.T) {
	r := ill()
	r.conclude()
	var got bytes.Buffer
	testkit.Must(t, r.WriteJUnit(&got))
	testkit.Golden(t, "ill.xml", got.String())
	var read junitSuites
	testkit.Must(t, xml.Unmarshal(got.Bytes(), &read))
	var counts []string
	for _, s := range read.Suites {
		counts = append(counts, fmt.Sprintf("%d/%d/%d", s.Tests, s.Failures, s.Errors))
	}
	if got := strings.Join(counts, " "); got != "13/4/0 13/1/0 14/5/0 1/0/1" {
		t.Errorf("tests, failures and errors of the suites are %s", got)
	}
}
