// Package pcapng writes captures of packets in the pcapng format
// (draft-ietf-opsawg-pcapng), which Wireshark and tcpdump read.
package pcapng

import (
	"encoding/binary"
	"io"
	"time"
)

// Block types, the byte-order magic, and option codes: sections 4.1 to 4.6 of the draft,
// options that all blocks may have: section 3.5.
const (
	blockSection    = 0x0a0d0d0a
	blockInterface  = 1
	blockStatistics = 5
	blockPacket     = 6
	byteOrderMagic  = 0x1a2b3c4d

	optEnd     = 0
	optComment = 1

	optApplication = 4 // of a section

	optName           = 2 // of an interface
	optDescription    = 3
	optTimeResolution = 9

	optFlags     = 2 // of a packet
	optDropCount = 4

	optReceived = 4 // of statistics
	optDropped  = 5
)

// linkRaw is LINKTYPE_RAW: packets begin with the IPv4 or IPv6 header.
const linkRaw = 101

// nanoseconds is the value of optTimeResolution for timestamps in units of 10⁻⁹ s.
const nanoseconds = 9

// Direction is the direction of a packet, as in optFlags.
type Direction uint32

// The directions, as seen from the host that captures.
const (
	Inbound  Direction = 1
	Outbound Direction = 2
)

// Interface describes where the packets of a section were captured.
type Interface struct {
	Name        string
	Description string
	Snaplen     int // bytes of a packet that are kept; 0: all
}

// Packet is a captured packet.
type Packet struct {
	Time      time.Time
	Direction Direction
	Length    int    // in bytes
	Data      []byte // the packet, or its beginning
	Comment   string // may be empty
	Lost      uint64 // packets that the capture lost between the one before and this one
}

// Writer writes a section with one interface whose packets are IP packets. It belongs
// to one goroutine.
type Writer struct {
	w    io.Writer
	b    []byte // the block that is being made
	size int64
}

// NewWriter writes the beginning of a section to w. application names the program that
// captures. The writer writes each block with one call of w.Write.
func NewWriter(w io.Writer, application string, i Interface) (*Writer, error) {
	x := &Writer{w: w}
	x.begin(blockSection)
	x.u32(byteOrderMagic)
	x.u16(1) // version 1.0
	x.u16(0)
	x.u64(^uint64(0)) // length unknown
	x.text(optApplication, application)
	x.u32(optEnd)
	if err := x.end(); err != nil {
		return nil, err
	}
	x.begin(blockInterface)
	x.u16(linkRaw)
	x.u16(0)
	x.u32(uint32(i.Snaplen))
	x.text(optName, i.Name)
	x.text(optDescription, i.Description)
	x.option(optTimeResolution, 1)
	x.b = append(x.b, nanoseconds, 0, 0, 0)
	x.u32(optEnd)
	return x, x.end()
}

// Size returns the number of bytes that have been written.
func (x *Writer) Size() int64 { return x.size }

// Packet writes a packet.
func (x *Writer) Packet(p *Packet) error {
	x.begin(blockPacket)
	x.u32(0) // the interface
	x.time(p.Time)
	x.u32(uint32(len(p.Data)))
	x.u32(uint32(p.Length))
	x.b = append(x.b, p.Data...)
	x.pad()
	x.option(optFlags, 4)
	x.u32(uint32(p.Direction))
	if p.Lost > 0 {
		x.option(optDropCount, 8)
		x.u64(p.Lost)
	}
	x.text(optComment, p.Comment)
	x.u32(optEnd)
	return x.end()
}

// Statistics writes how many packets the section has and how many it lost in all. It is
// the last block.
func (x *Writer) Statistics(at time.Time, captured, lost uint64) error {
	x.begin(blockStatistics)
	x.u32(0) // the interface
	x.time(at)
	x.option(optReceived, 8)
	x.u64(captured + lost)
	x.option(optDropped, 8)
	x.u64(lost)
	x.u32(optEnd)
	return x.end()
}

// begin begins a block. end completes its length, which precedes and follows the body.
func (x *Writer) begin(kind uint32) {
	x.b = x.b[:0]
	x.u32(kind)
	x.u32(0)
}

// end writes the block.
func (x *Writer) end() error {
	size := uint32(len(x.b) + 4)
	binary.NativeEndian.PutUint32(x.b[4:], size)
	x.u32(size)
	x.size += int64(size)
	_, err := x.w.Write(x.b)
	return err
}

// time appends a timestamp, whose halves are in the order of significance whatever the
// byte order.
func (x *Writer) time(t time.Time) {
	ns := uint64(t.UnixNano())
	x.u32(uint32(ns >> 32))
	x.u32(uint32(ns))
}

// option appends the head of an option.
func (x *Writer) option(code, length int) {
	x.u16(uint16(code))
	x.u16(uint16(length))
}

// text appends an option with a text, which is cut after the longest length that an
// option can have. It appends nothing for an empty one.
func (x *Writer) text(code int, s string) {
	if s == "" {
		return
	}
	s = s[:min(len(s), 0xffff)]
	x.option(code, len(s))
	x.b = append(x.b, s...)
	x.pad()
}

// pad appends zeros up to a multiple of 4 bytes.
func (x *Writer) pad() {
	for len(x.b)%4 != 0 {
		x.b = append(x.b, 0)
	}
}

func (x *Writer) u16(v uint16) { x.b = binary.NativeEndian.AppendUint16(x.b, v) }
func (x *Writer) u32(v uint32) { x.b = binary.NativeEndian.AppendUint32(x.b, v) }
func (x *Writer) u64(v uint64) { x.b = binary.NativeEndian.AppendUint64(x.b, v) }
