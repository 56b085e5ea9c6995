package keep

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/atomicfile"
	"github.com/twillnet/twill/internal/lab/testkit"
)

var (
	someNetwork = network{netip.MustParsePrefix("10.5.0.0/16"), 24}
	plainRoute  = Route{Dst: netip.MustParsePrefix("10.5.2.0/24"), Via: netip.MustParseAddr("192.0.2.2"), Dev: "eth0"}
	blackhole   = Route{Dst: netip.MustParsePrefix("10.5.1.0/24"), Blackhole: true}
	tunnelled   = Route{Dst: netip.MustParsePrefix("10.5.3.0/24"), Via: netip.MustParseAddr("10.5.3.0"), Dev: "flannel.1", OnLink: true}
)

func reopened(t *testing.T, path string) *record {
	t.Helper()
	r, err := openRecord(path)
	testkit.Must(t, err)
	return r
}

// TestRecordOutlivesTheProcess: what is recorded is there for the next run,
// among whatever a killed writer or another program left in the file.
func TestRecordOutlivesTheProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "subnet.env.routes")
	all := []Route{plainRoute, blackhole, tunnelled}
	testkit.Must(t, reopened(t, path).add([]network{someNetwork}, all))
	garbage := "10.5.7.0/24 via 192.0\nnetwork 10.6.0.0/16 /8\nblackhole\n\x00\xff\n10.5.9.0/24 via"
	text, err := os.ReadFile(path)
	testkit.Must(t, err, os.WriteFile(path, append(text, garbage...), 0o644))
	more := plainRoute
	more.Dst = netip.MustParsePrefix("10.5.4.0/24")
	testkit.Must(t, reopened(t, path).add([]network{someNetwork}, append(all, more)))

	r := reopened(t, path)
	if !r.has(plainRoute) || !r.has(more) || !r.has(blackhole) || !slices.Equal(r.networks, []network{someNetwork}) {
		t.Errorf("read back: %v, %v", r.networks, r.routes)
	}
	if len(r.routes) != 3 { // what disappears with a device of ours is not recorded
		t.Errorf("routes %v", r.routes)
	}
}

func TestRecordDoesNotGrowForEver(t *testing.T) {
	path := filepath.Join(t.TempDir(), "record")
	r := reopened(t, path)
	for i := range 2 * spare {
		route := plainRoute
		route.Dst = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, byte(i >> 8), byte(i)}), 32)
		testkit.Must(t, r.add([]network{someNetwork}, []Route{route}), r.trim([]network{someNetwork}, []Route{route}))
	}
	text, err := os.ReadFile(path)
	testkit.Must(t, err)
	if n := strings.Count(string(text), "via"); n > spare+1 {
		t.Errorf("%d lines for one route", n)
	}
	testkit.Must(t, r.trim(nil, nil))
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("a record of nothing: %v", err)
	}
}

// TestRecordDoesNotFollowLinks: in a directory that others can write to, a link
// would have a file elsewhere overwritten.
func TestRecordDoesNotFollowLinks(t *testing.T) {
	dir := t.TempDir()
	path, victim := filepath.Join(dir, "record"), filepath.Join(dir, "victim")
	testkit.Must(t, os.WriteFile(victim, []byte("keep"), 0o644), os.Symlink(victim, path))
	if _, err := openRecord(path); err == nil {
		t.Error("a link is read")
	}
	testkit.Must(t, os.Remove(path))
	r := reopened(t, path)
	testkit.Must(t, os.Symlink(victim, path))
	if err := r.add([]network{someNetwork}, []Route{plainRoute}); err == nil {
		t.Error("a link is written to")
	}
	testkit.Must(t, os.Remove(path), os.Symlink(victim, atomicfile.Temp(path)))
	testkit.Must(t, r.add([]network{someNetwork}, []Route{plainRoute}), r.trim([]network{}, []Route{plainRoute}))
	text, err := os.ReadFile(victim)
	if err != nil || string(text) != "keep" {
		t.Errorf("the file elsewhere has %q (%v)", text, err)
	}
	if got := reopened(t, path); !got.has(plainRoute) || len(got.networks) > 0 {
		t.Errorf("%v, %v", got.networks, got.routes)
	}
}

func FuzzParseRoute(f *testing.F) {
	for _, r := range []Route{plainRoute, blackhole} {
		f.Add(r.String())
	}
	f.Add("a via b dev c")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRoute(text)
		if err != nil {
			return
		}
		if again, err := parseRoute(r.String()); err != nil || again != r {
			t.Errorf("%q: %v, again %v (%v)", text, r, again, err)
		}
	})
}

func ExampleRoute_String() {
	fmt.Println(plainRoute)
	fmt.Println(tunnelled)
	fmt.Println(blackhole)
	// Output:
	// 10.5.2.0/24 via 192.0.2.2 dev eth0
	// 10.5.3.0/24 via 10.5.3.0 dev flannel.1 onlink
	// blackhole 10.5.1.0/24
}
