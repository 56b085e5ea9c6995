// Package connectivity tests the network from every node to every other.
//
// On each node runs a part: twill, started by an operator's command such as ssh, which
// reads requests from its standard input and writes answers to its standard output, one
// JSON object a line. The coordinator, which may be on a node itself, starts the parts
// and reads their answers:
//
//	coordinator                       part of each node
//	  start: cookie    ─────────────►   listens on the node's address among its pods
//	                   ◄─────────────   hello: addresses, tables, doctor's findings
//	  test: all ends   ─────────────►   pings, TCP and UDP to each end ──► other parts
//	                   ◄─────────────   a result for each end
//	  end of input     ─────────────►   closes what it listens on, ends
//
// So the daemon answers nobody, and nothing listens but while a test runs. What listens
// then echoes, and only to a sender that knows the cookie, which is random for each test:
// a pod or a stranger that finds the port learns nothing from it, and an answer is never
// larger than its question.
package connectivity

import (
	"net/netip"
	"time"

	"github.com/twillnet/twill/internal/doctor"
)

// protocol is the version of the messages. A part of another version is not asked.
const protocol = 1

// maxLine bounds a message: the table of 5,000 peers takes about 1 MiB.
const maxLine = 16 << 20

// request is a message to a part: the first starts it, each later one is a test.
type request struct {
	Start *start `json:"start,omitempty"`
	Test  *test  `json:"test,omitempty"`
}

// start is what a part needs before it can say hello.
type start struct {
	Protocol int    `json:"protocol"`
	Cookie   []byte `json:"cookie"`
	Port     uint16 `json:"port,omitempty"` // to listen on; 0: any that is free
}

// test makes a part test the way to each end.
type test struct {
	Ends []End         `json:"ends"`
	Wait time.Duration `json:"wait"` // for each answer
}

// answer is a message of a part.
type answer struct {
	Hello  *Hello  `json:"hello,omitempty"`
	Result *Result `json:"result,omitempty"`
	Done   bool    `json:"done,omitempty"` // after the last result of a test
}

// Hello is what a part says of its node.
type Hello struct {
	Protocol int              `json:"protocol"`
	Facts    []Fact           `json:"facts,omitempty"`
	MTU      int              `json:"mtu,omitempty"`
	Table    []Path           `json:"table,omitempty"`
	Ends     []End            `json:"ends,omitempty"`
	Findings []doctor.Finding `json:"findings,omitempty"` // doctor's, except those that are good
}

// Fact is a property of a node that is compared with those of others.
type Fact struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Path is how a node sends packets to a subnet.
type Path struct {
	Subnet  netip.Prefix `json:"subnet"`
	Public  netip.Addr   `json:"public_ip"`
	Backend string       `json:"backend"`
}

// End is where tests to a pod subnet arrive.
type End struct {
	Node   netip.Addr   `json:"node"` // its public address
	Subnet netip.Prefix `json:"subnet"`
	// Addr is an address of the node by which packets take the way of those to pods. It
	// is invalid if no part runs there; pings go to the node's device then.
	Addr netip.Addr `json:"addr,omitzero"`
	TCP  uint16     `json:"tcp,omitempty"` // port; 0: nothing listens
	UDP  uint16     `json:"udp,omitempty"`
	Size int        `json:"size,omitempty"` // of the largest packet that should arrive, IP header included
}

// Result is what came of the tests from one node to an end.
type Result struct {
	From    netip.Addr   `json:"from"`
	To      netip.Addr   `json:"to"`
	Subnet  netip.Prefix `json:"subnet"`
	Addr    netip.Addr   `json:"addr,omitzero"`
	Backend string       `json:"backend,omitempty"`
	Tests   []Outcome    `json:"tests"`
}

// Outcome is the result of one test.
type Outcome struct {
	Test    string  `json:"test"` // ping, mtu, tcp, udp
	OK      bool    `json:"ok"`
	Skipped bool    `json:"skipped,omitempty"` // it was not tried, for the reason in Detail
	Detail  string  `json:"detail,omitempty"`
	Millis  float64 `json:"ms,omitempty"`
}

// Failed reports whether the test was tried and did not pass.
func (o Outcome) Failed() bool { return !o.OK && !o.Skipped }

// Names of the tests, in the order in which they are tried.
const (
	testPing = "ping" // small packets
	testMTU  = "mtu"  // packets as large as pods may send, which must not be fragmented
	testTCP  = "tcp"  // a connection that carries bytes in both directions
	testUDP  = "udp"  // datagrams as large as pods may send
)

// family returns the name of the address family of the end.
func (r *Result) family() string {
	if r.Subnet.Addr().Is6() {
		return "ipv6"
	}
	return "ipv4"
}
