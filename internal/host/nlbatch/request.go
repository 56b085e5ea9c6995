package nlbatch

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Request is a change for [Conn.Do] to make. It is a value and may be reused. A
// request made from invalid values is not sent; Do returns its error.
type Request struct {
	op     string
	object fmt.Stringer
	kind   uint16 // RTM_NEWROUTE, …
	flags  uint16 // NLM_F_CREATE, …
	body   []byte // everything after struct nlmsghdr, a multiple of 4 bytes
	err    error
}

// String describes the request: "delete route 10.5.2.0/24 dev 7".
func (r Request) String() string { return r.op + " " + r.object.String() }

const (
	create  = unix.NLM_F_CREATE | unix.NLM_F_EXCL
	replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
)

// wrong returns a request that fails with err.
func wrong(op string, object fmt.Stringer, err error) Request {
	return Request{op: op, object: object, err: fmt.Errorf("%s %s: %w", op, object, err)}
}

// attr is an attribute of a netlink message.
type attr struct {
	kind int
	data []byte
}

// body encodes a header and attributes. It leaves out attributes without data.
func body(header []byte, attrs ...attr) []byte {
	b := append([]byte(nil), header...)
	for _, a := range attrs {
		if len(a.data) > 0 {
			b = append(b, nl.NewRtAttr(a.kind, a.data).Serialize()...)
		}
	}
	return b
}

// family returns AF_INET or AF_INET6.
func family(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
