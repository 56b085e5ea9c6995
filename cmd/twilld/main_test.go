package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// asTwilld is the variable that makes this test binary twilld itself.
const asTwilld = "TWILLD_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asTwilld) != "" {
		main()
	}
	os.Exit(m.Run())
}

func TestExitCodeAndOneLineOnStandardError(t *testing.T) {
	for _, tc := range []struct {
		args   []string
		env    string
		code   int
		stderr string // the line that is wanted; empty: none at all
	}{
		{[]string{"--help"}, "", 0, ""},
		{[]string{"-version"}, "", 0, ""},
		{[]string{"--helo"}, "", 2, "twilld: unknown flag --helo; --help lists them\n"},
		{[]string{"--thread-pair=1"}, "", 2, "twilld: unknown flag --thread-pair; did you mean --thread-pairs?\n"},
		{[]string{"--etcd-endpoints=ftp://192.0.2.1"}, "", 2,
			"twilld: etcd endpoints: number 1, \"ftp://192.0.2.1\": want a URL such as \"http://192.0.2.1:2379\"; correct --etcd-endpoints\n"},
		{[]string{"--lease-file=x"}, "FLANNELD_KUBE_SUBNET_MGR=true", 2,
			"twilld: --kube-subnet-mgr: leases come either from Kubernetes or from --lease-file; omit one\n"},
		{[]string{"--lease-file=x", "--socket=/dev/null", "--log-level=error"}, "", 1,
			"twilld: control socket /dev/null: exists and is not a socket; remove it or choose another path with --socket\n"},
	} {
		cmd := exec.Command(os.Args[0], tc.args...)
		cmd.Env = append(os.Environ(), asTwilld+"=1", tc.env)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if code := cmd.ProcessState.ExitCode(); code != tc.code {
			t.Errorf("%q: exit code %d, want %d", tc.args, code, tc.code)
		}
		if stderr.String() != tc.stderr {
			t.Errorf("%q: stderr %q, want %q", tc.args, stderr.String(), tc.stderr)
		}
		if tc.code == 0 && !strings.Contains(stdout.String(), "twilld") {
			t.Errorf("%q: stdout %q", tc.args, stdout.String())
		}
	}
}
