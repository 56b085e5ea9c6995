package capability

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSetsAreWrittenByName(t *testing.T) {
	for set, want := range map[Set]string{
		0:                                        "",
		Of(unix.CAP_NET_RAW, unix.CAP_NET_ADMIN): "NET_ADMIN NET_RAW",
		Of(unix.CAP_CHOWN, unix.CAP_BPF, unix.CAP_CHECKPOINT_RESTORE, 63): "CHOWN BPF CHECKPOINT_RESTORE 63",
	} {
		if got := set.String(); got != want {
			t.Errorf("%#x: %q, want %q", uint64(set), got, want)
		}
	}
}

func TestFilesThatOnlyAnOverrideOpensAreFound(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	file, locked := filepath.Join(dir, "file"), filepath.Join(dir, "locked")
	const otherUser = 4242
	for _, err := range []error{
		os.WriteFile(file, nil, 0o600), os.Mkdir(locked, 0o700), os.WriteFile(filepath.Join(locked, "key"), nil, 0o644),
		os.Chown(locked, otherUser, otherUser),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		Files
		want string
	}{
		{Files{Read: []string{"", file, filepath.Join(dir, "absent")}, WriteIn: []string{"", dir, filepath.Join(dir, "to", "make")}}, ""},
		{Files{Read: []string{file, filepath.Join(locked, "key")}}, filepath.Join(locked, "key")},
		{Files{WriteIn: []string{locked}}, locked},
		{Files{WriteIn: []string{filepath.Join(locked, "to", "make")}}, filepath.Join(locked, "to", "make")},
	} {
		if got := tt.NeedOverride(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.Files, got, tt.want)
		}
	}
	// Other threads still ignore permissions.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if s, err := get(); err != nil || s.effective != s.permitted {
		t.Errorf("this thread has %+v, %v", s, err)
	}
}
