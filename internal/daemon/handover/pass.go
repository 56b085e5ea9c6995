package handover

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The conversation on the control socket: the new process sends an HTTP request
// for Path with an Upgrade to Protocol. The old one answers 101 and sends messages
// with the names of descriptors, each accompanied by the descriptors (SCM_RIGHTS);
// the last message has no descriptors, but the interval of the service manager's
// watchdog. Later the new process sends a line "ready"; the old one stops forwarding
// and answers with a line "stopped". The stream ends with the old process.
const (
	Path     = "/handover"
	Protocol = "twill-handover/1"
	ready    = "ready\n"
	stopped  = "stopped\n"
)

const (
	// perMessage is how many descriptors accompany a message; SCM_MAX_FD is 253.
	perMessage = 64
	// maxMessage bounds the size of a message in bytes.
	maxMessage = 16 << 10
	// patience bounds each step of the other process that should take no time.
	patience = 5 * time.Second
)

// Offer is the running daemon's side of a handover, on a connection that
// requested Path.
type Offer struct {
	conn  *net.UnixConn
	outer net.Conn // what the HTTP server has already read from it
}

// Accept answers the request of a process that wants to take over.
func Accept(w http.ResponseWriter, r *http.Request) (*Offer, error) {
	if r.Header.Get("Upgrade") != Protocol {
		http.Error(w, "want an upgrade to "+Protocol, http.StatusUpgradeRequired)
		return nil, fmt.Errorf("handover: the other process speaks %q, want %s", r.Header.Get("Upgrade"), Protocol)
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("handover: %w", err)
	}
	inner := conn
	if wrapped, ok := inner.(interface{ NetConn() net.Conn }); ok {
		inner = wrapped.NetConn()
	}
	c, ok := inner.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("handover: not on a unix socket"), conn.Close())
	}
	if err = c.SetDeadline(time.Now().Add(patience)); err == nil {
		_, err = io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\n\r\n")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("handover: %w", err), conn.Close())
	}
	return &Offer{c, conn}, nil
}

// Send sends copies of the descriptors. watchdog is the interval at which the service
// manager of this process expects keep-alives, which the other process has to send after
// the handover; 0 if it expects none.
func (o *Offer) Send(d Descriptors, watchdog time.Duration) error {
	if err := o.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	for names := range slices.Chunk(d.Names(), perMessage) {
		fds := make([]int, len(names))
		for i, name := range names {
			fds[i] = d[name]
		}
		if err := write(o.conn, message{Names: names}, fds); err != nil {
			return fmt.Errorf("handover: send descriptors: %w", err)
		}
	}
	return write(o.conn, message{Watchdog: watchdog}, nil)
}

// Refuse ends a conversation in which nothing was sent yet. The other process reports why.
func (o *Offer) Refuse(why string) error {
	err := o.conn.SetDeadline(time.Now().Add(patience))
	if err == nil {
		err = write(o.conn, message{Refused: why}, nil)
	}
	return errors.Join(err, o.Close())
}

// Ready waits until the other process is ready, and then returns nil, or until it
// gives up.
func (o *Offer) Ready() error {
	if err := o.conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	if err := expect(o.conn, ready); err != nil {
		return fmt.Errorf("handover: the new process exited before it was ready: %w", err)
	}
	return nil
}

// Stopped notifies the other process that this one has stopped forwarding.
func (o *Offer) Stopped() error {
	if err := o.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := io.WriteString(o.conn, stopped)
	return err
}

// PID returns the PID of the other process, or 0 if it is in another PID
// namespace.
func (o *Offer) PID() int {
	raw, err := o.conn.SyscallConn()
	if err != nil {
		return 0
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil || err != nil {
		return 0
	}
	return int(cred.Pid)
}

// Close ends the conversation. After Stopped it notifies the other process that
// this one has released its exclusive resources, such as the control socket; the
// end of the process does the same.
func (o *Offer) Close() error { return o.outer.Close() }

// expect reads a line, byte by byte.
func expect(c *net.UnixConn, line string) error {
	got := make([]byte, len(line))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != line {
		return fmt.Errorf("it sent %q, not %q", got, line)
	}
	return nil
}

// Takeover is the new process's side of a handover.
type Takeover struct {
	conn *net.UnixConn
	// Descriptors are the running daemon's descriptors; the caller owns these
	// copies.
	Descriptors Descriptors
	// Watchdog is the interval at which the running daemon's service manager expects
	// keep-alives; 0 if it expects none.
	Watchdog time.Duration
}

// Request requests the descriptors of the daemon that listens on the control socket
// at path. That daemon continues until Ready is called, and stays in service if the
// conversation ends earlier.
func Request(path string) (_ *Takeover, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("take over from the twilld on %s: %w", path, err)
		}
	}()
	conn, err := net.DialTimeout("unix", path, patience)
	if err != nil {
		return nil, err
	}
	c := conn.(*net.UnixConn)
	t := &Takeover{conn: c, Descriptors: make(Descriptors)}
	if err := t.receive(); err != nil {
		return nil, errors.Join(err, t.Descriptors.Close(), c.Close())
	}
	return t, nil
}

func (t *Takeover) receive() error {
	if err := t.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(t.conn, "POST "+Path+" HTTP/1.1\r\nHost: twilld\r\nConnection: Upgrade\r\nUpgrade: "+Protocol+"\r\nContent-Length: 0\r\n\r\n"); err != nil {
		return err
	}
	// Read byte by byte: the message after the answer carries descriptors.
	answer, err := http.ReadResponse(bufio.NewReaderSize(oneByOne{t.conn}, 16), nil)
	if err != nil {
		return err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		return fmt.Errorf("%s; is it an older version?", answer.Status)
	}
	for {
		m, fds, err := read(t.conn)
		if err != nil {
			return err
		}
		if m.Refused != "" {
			return errors.New("it refuses: " + m.Refused)
		}
		if len(m.Names) == 0 {
			t.Watchdog = m.Watchdog
			return nil
		}
		for i, name := range m.Names {
			t.Descriptors[name] = fds[i]
		}
	}
}

// Ready makes the old daemon stop forwarding and end. It returns when that
// daemon has stopped forwarding.
func (t *Takeover) Ready() error {
	if err := t.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := io.WriteString(t.conn, ready); err != nil {
		return fmt.Errorf("handover: %w", err)
	}
	if err := expect(t.conn, stopped); err != nil {
		return fmt.Errorf("handover: the old process did not stop: %w", err)
	}
	return nil
}

// Ended waits until the old daemon has released its exclusive resources.
func (t *Takeover) Ended(within time.Duration) error {
	if err := t.conn.SetDeadline(time.Now().Add(within)); err != nil {
		return err
	}
	if _, err := t.conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		return fmt.Errorf("handover: the old process did not exit within %v", within)
	}
	return nil
}

// Close ends the conversation. Without Ready the old daemon continues.
func (t *Takeover) Close() error { return t.conn.Close() }

// message is the text sent along with descriptors.
type message struct {
	Names    []string      `json:"names"`
	Refused  string        `json:"refused,omitempty"`  // why there are none
	Watchdog time.Duration `json:"watchdog,omitempty"` // nanoseconds
}

func write(c *net.UnixConn, m message, fds []int) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	_, _, err = c.WriteMsgUnix(append(text, '\n'), rights, nil)
	return err
}

// read reads one message. A read from a stream socket stops at the descriptors of
// the next message (unix(7)), but the text may arrive in parts.
func read(c *net.UnixConn) (m message, fds []int, err error) {
	defer func() {
		if err != nil {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
	}()
	var text []byte
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*perMessage))
	for len(text) == 0 || text[len(text)-1] != '\n' {
		n, oobn, flags, _, err := c.ReadMsgUnix(buf[:1], oob)
		if err != nil {
			return m, fds, err
		}
		if n == 0 {
			return m, fds, io.ErrUnexpectedEOF
		}
		got, err := parseRights(oob[:oobn])
		fds = append(fds, got...)
		switch {
		case err != nil:
			return m, fds, err
		case flags&unix.MSG_CTRUNC != 0:
			return m, fds, fmt.Errorf("descriptors were lost: %w", unix.EMFILE)
		case len(text) >= maxMessage:
			return m, fds, errors.New("message too long")
		}
		text = append(text, buf[:n]...)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return m, fds, err
	}
	if len(m.Names) != len(fds) {
		return m, fds, fmt.Errorf("%d descriptors with %d names", len(fds), len(m.Names))
	}
	return m, fds, nil
}

func parseRights(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		got, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // control message of another kind
		}
		for _, fd := range got {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

// oneByOne reads single bytes, so that nothing beyond them is consumed.
type oneByOne struct{ c *net.UnixConn }

func (o oneByOne) Read(b []byte) (int, error) { return o.c.Read(b[:1]) }
