package connectivity

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// own is the subnet of a part in these tests: its address among its pods is on the
// loopback.
var own = netip.MustParsePrefix("127.0.0.0/24")

// inProcess starts a part in this process.
func inProcess(n Node) func(context.Context) (Connection, error) {
	return func(ctx context.Context) (Connection, error) {
		requests, in := io.Pipe()
		out, answers := io.Pipe()
		var all sync.WaitGroup
		var err error
		all.Go(func() {
			err = Serve(ctx, n, requests, answers)
			_, _ = requests.Close(), answers.Close()
		})
		return Connection{In: in, Out: out, Wait: func() error {
			_ = out.Close()
			all.Wait()
			return err
		}}, nil
	}
}

// talker is a part that answers each request with the next of some lines.
func talker(end error, lines ...string) func(context.Context) (Connection, error) {
	return func(context.Context) (Connection, error) {
		requests, in := io.Pipe()
		out, answers := io.Pipe()
		go func() {
			asked := bufio.NewScanner(requests)
			for _, l := range lines {
				if !asked.Scan() {
					break
				}
				_, _ = io.WriteString(answers, l)
			}
			_, _ = requests.Close(), answers.Close()
		}()
		return Connection{In: in, Out: out, Wait: func() error { _ = out.Close(); return end }}, nil
	}
}

// onLoopback is the node of a part on the loopback, with a path to another's subnet.
func onLoopback(self, other netip.Addr) Node {
	return Node{Document: &status.Document{
		Version: "0.1.0",
		Lease:   &status.Lease{Subnet: own, PublicIP: self},
		Dataplane: &status.Dataplane{
			Devices: []status.Device{{Name: "flannel0", Kind: status.KindOffload, MTU: 1472}},
			Peers:   []status.Peer{{PublicIP: other, Subnets: []netip.Prefix{own}, Backend: "udp"}},
		},
	}}
}

func TestEveryTestPassesBetweenPartsThatReachEachOther(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("pings need root")
	}
	var seen Progress
	r, err := Run(t.Context(), Options{
		Members: []Member{
			{Node: nodeAddr(1), Subnets: []netip.Prefix{own}, Start: inProcess(onLoopback(nodeAddr(1), nodeAddr(2)))},
			{Node: nodeAddr(2), Subnets: []netip.Prefix{own}, Start: inProcess(onLoopback(nodeAddr(2), nodeAddr(1)))},
		},
		Wait: testkit.Patience, Parallel: 2, Progress: func(p Progress) { seen = p },
	})
	testkit.Must(t, err)
	if !r.OK || len(r.Results) != 2 || len(r.Differences) != 0 {
		t.Errorf("got %+v", r)
	}
	for _, one := range r.Results {
		if len(one.Tests) != 4 || one.verdict() != "ok" || one.Backend != "udp" {
			t.Errorf("%+v", one)
		}
	}
	if seen != (Progress{2, 2, 2, 2, 0}) {
		t.Errorf("the last progress is %+v", seen)
	}
}

// TestPartThatDoesNotDoItsWorkIsNamed: it does not keep the others from theirs.
func TestPartThatDoesNotDoItsWorkIsNamed(t *testing.T) {
	const hello = `{"hello":{"protocol":1}}` + "\n"
	for _, tt := range []struct {
		start func(context.Context) (Connection, error)
		want  string
	}{
		{func(context.Context) (Connection, error) { return Connection{}, errors.New("no such program") }, "no such program"},
		{talker(errors.New("exit status 255: Permission denied")), "Permission denied"},
		{talker(nil, "Welcome to node 2!\n"), `answers "Welcome to node 2!"`},
		{talker(nil, `{"hello":{"protocol":99}}`+"\n"), "another version"},
		{talker(nil, `{"done":true}`+"\n"), "does not answer with a hello message"},
		{talker(nil, hello), "exited"},
		{talker(nil, hello, `{"done":true}`+"\n"), "tested only 0 of 1 paths"},
		{talker(nil, hello, strings.Repeat(`{"result":{"tests":[]}}`+"\n", 2)), "does not answer with results"},
	} {
		r, err := Run(t.Context(), Options{
			Members: []Member{
				{Node: nodeAddr(1), Subnets: []netip.Prefix{subnetOf(1)}, Start: talker(nil, hello, `{"result":{"tests":[]}}`+"\n"+`{"done":true}`+"\n")},
				{Node: nodeAddr(2), Subnets: []netip.Prefix{subnetOf(2)}, Start: tt.start},
			},
			Wait: time.Second, Parallel: 1,
		})
		testkit.Must(t, err)
		if got := r.Nodes[1].Problem; r.OK || !strings.Contains(got, tt.want) {
			t.Errorf("OK is %t, %q; want a problem with %q", r.OK, got, tt.want)
		}
		if r.Nodes[0].Problem != "" {
			t.Errorf("%q: and the other node has %q", tt.want, r.Nodes[0].Problem)
		}
	}
}

// A connection in which nothing is sent any more does not delay the end of a part.
func TestPartEndsAlthoughAConnectionIsOpen(t *testing.T) {
	c, err := inProcess(onLoopback(nodeAddr(1), nodeAddr(2)))(t.Context())
	testkit.Must(t, err)
	testkit.Must(t, json.NewEncoder(c.In).Encode(request{Start: &start{Protocol: protocol, Cookie: make([]byte, cookieLen)}}))
	var first answer
	testkit.Must(t, json.NewDecoder(c.Out).Decode(&first))
	end := first.Hello.Ends[0]
	idle, err := net.Dial("tcp", netip.AddrPortFrom(end.Addr, end.TCP).String())
	testkit.Must(t, err)
	defer idle.Close()
	_, err = idle.Write(make([]byte, cookieLen+1))
	testkit.Must(t, err)
	_, err = io.ReadFull(idle, make([]byte, 1)) // so it is served
	testkit.Must(t, err)

	testkit.Must(t, c.In.Close())
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	if !testkit.Within(connectionTime/2, func() bool { return len(ended) > 0 }) {
		t.Fatal("the part waits for the connection")
	}
	testkit.Must(t, <-ended)
}

// TestNodeDoesNotChooseWhereOthersSend: the others run as root, and pass on the cookie.
func TestNodeDoesNotChooseWhereOthersSend(t *testing.T) {
	ends := func(addr string, size int64) string {
		return fmt.Sprintf(`{"hello":{"protocol":1,"ends":[{"subnet":"10.5.2.0/24","addr":%q,"tcp":1,"udp":1,"size":%d}]}}`+"\n", addr, size)
	}
	for _, tt := range []struct {
		addr string
		size int64
		want bool
	}{
		{"10.5.2.1", 1450, true},
		{"192.0.2.2", 1450, true},
		{"2001:db8::2", 1450, true},
		{"10.5.1.1", 1450, false},
		{"198.51.100.7", 1450, false},
		{"10.5.2.1", 1 << 40, false}, // more than there is memory for
		{"10.5.2.1", -1, false},
	} {
		asked := make(chan string, 1)
		r, err := Run(t.Context(), Options{
			Members: []Member{
				{Node: nodeAddr(1), Subnets: []netip.Prefix{subnetOf(1)}, Start: listener(asked)},
				{Node: nodeAddr(2), Other: netip.MustParseAddr("2001:db8::2"), Subnets: []netip.Prefix{subnetOf(2)}, Start: talker(nil, ends(tt.addr, tt.size))},
			},
			Wait: time.Second, Parallel: 1,
		})
		testkit.Must(t, err)
		if sent := strings.Contains(<-asked, `"tcp":1`); sent != tt.want {
			t.Errorf("%s, %d bytes: sent to there: %t, want %t; %+v", tt.addr, tt.size, sent, tt.want, r.Nodes)
		}
	}
}

// listener is a part that passes on the test that it is asked for, and does nothing.
func listener(asked chan<- string) func(context.Context) (Connection, error) {
	return func(context.Context) (Connection, error) {
		requests, in := io.Pipe()
		out, answers := io.Pipe()
		go func() {
			lines := bufio.NewScanner(requests)
			lines.Scan()
			_, _ = io.WriteString(answers, `{"hello":{"protocol":1}}`+"\n")
			lines.Scan()
			asked <- lines.Text()
			_, _ = requests.Close(), answers.Close()
		}()
		return Connection{In: in, Out: out, Wait: func() error { _ = out.Close(); return nil }}, nil
	}
}

// TestListenersAnswerOnlyThoseWhoKnowTheCookie: they are open to pods and strangers while
// a test runs.
func TestListenersAnswerOnlyThoseWhoKnowTheCookie(t *testing.T) {
	cookie := []byte("sixteen-bytes-ab")
	s := newServer(t.Context(), cookie)
	defer s.close()
	loopback := netip.MustParseAddr("127.0.0.1")
	tcp, udp, err := s.listen(loopback, 0)
	testkit.Must(t, err)

	c, err := net.Dial("tcp", netip.AddrPortFrom(loopback, tcp).String())
	testkit.Must(t, err)
	_, err = io.WriteString(c, strings.Repeat("x", cookieLen))
	testkit.Must(t, err)
	if got, _ := io.ReadAll(c); len(got) > 0 {
		t.Errorf("a stranger was answered %q", got)
	}
	_ = c.Close()

	u, err := net.Dial("udp", netip.AddrPortFrom(loopback, udp).String())
	testkit.Must(t, err)
	defer u.Close()
	buf := make([]byte, 100)
	testkit.Eventually(t, "the datagram with the cookie is answered, and not the one before it", func() bool {
		for _, text := range []string{"who is there? who is there?", string(cookie) + "hello"} {
			_, err := io.WriteString(u, text)
			testkit.Must(t, err)
		}
		testkit.Must(t, u.SetReadDeadline(time.Now().Add(time.Second)))
		n, err := u.Read(buf)
		if err == nil && string(buf[:n]) != string(cookie)+"hello" {
			t.Fatalf("answered is %q", buf[:n])
		}
		return err == nil
	})
}
