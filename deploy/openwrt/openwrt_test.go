// Package openwrt has no code: it holds the recipes for OpenWrt. They are evaluated with
// stand-ins for OpenWrt's own files, which are not at hand.
package openwrt

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/version"
)

func TestRecipeBuildsTheProgramsOfThisVersion(t *testing.T) {
	top := t.TempDir()
	for name, text := range map[string]string{
		"rules.mk":           "INCLUDE_DIR:=$(TOPDIR)/include\n",
		"include/package.mk": "",
		"feeds/packages/lang/golang/golang-package.mk": `GO_PKG_BUILD_VARS= GOENV=off
GO_PKG_DEFAULT_LDFLAGS= -linkmode external
define GoPackage/Build/Compile
$(info build $(GO_PKG_BUILD_PKG): $(GO_PKG_BUILD_VARS) -ldflags $(GO_PKG_DEFAULT_LDFLAGS) -gcflags=$(GO_PKG_GCFLAGS) -tags $(GO_PKG_TAGS))
endef
define GoBinPackage
endef
define BuildPackage
$(info version $(PKG_VERSION))$(Build/Compile)$(info install $(call Package/$(1)/install,ROOT))
endef
`,
	} {
		path := filepath.Join(top, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.CommandContext(t.Context(), "make", "-n", "TOPDIR="+top, "INSTALL_BIN=install", "INSTALL_CONF=install", "INSTALL_DIR=mkdir -p").CombinedOutput()
	text := string(out)
	if !strings.Contains(text, "version "+version.Release+"\n") {
		t.Errorf("not of version %s: %v\n%s", version.Release, err, text)
	}
	// The daemon as "make build-lite" builds it, and twill as "make build" does.
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	variable := func(name string) string {
		_, value, _ := strings.Cut(string(makefile), "\n"+name+" := ")
		value, _, _ = strings.Cut(value, "\n")
		return value
	}
	flags := map[string]string{"twilld": "-gcflags=", "twill": variable("SMALL")}
	for program, small := range flags {
		if _, err := os.Stat(filepath.Join("../../cmd", program)); err != nil {
			t.Error(err)
		}
		want := "build github.com/twillnet/twill/cmd/" + program + ": GOENV=off CGO_ENABLED=0 -ldflags -s -w " + small +
			" -tags grpcnotrace," + variable("LITE ") + "\n"
		if !strings.Contains(text, want) {
			t.Errorf("it does not build %s as the Makefile does, with %q:\n%s", program, want, text)
		}
	}
	if n := strings.Count(text, "build github.com/"); n != len(flags) {
		t.Errorf("it builds %d programs, want %d:\n%s", n, len(flags), text)
	}
	_, install, _ := strings.Cut(text, "install ")
	for word := range strings.FieldsSeq(install) {
		if strings.HasPrefix(word, "./") {
			if _, err := os.Stat(word); err != nil {
				t.Errorf("it installs a file that is not there: %v", err)
			}
		}
	}
	if !strings.Contains(install, "ROOT/etc/init.d/twilld") {
		t.Errorf("it does not install the service:\n%s", install)
	}
}

// The service passes each variable of the file, and nothing of its comments.
func TestServiceStartsTheDaemonWithItsVariables(t *testing.T) {
	env := filepath.Join(t.TempDir(), "twilld.env")
	if err := os.WriteFile(env, []byte("# FLANNELD_NOT=1\n\nFLANNELD_IFACE=eth0\nFLANNELD_ETCD_PASSWORD=a b$c\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	script := `
for f in open_instance set_param append_param close_instance; do
	eval "procd_$f() { printf '%s' $f; printf ' <%s>' \"\$@\"; echo; }"
done
. ./files/twilld.init
start_service`
	cmd := exec.CommandContext(t.Context(), "sh", "-euc", script)
	cmd.Env = append(os.Environ(), "ENV_FILE="+env)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	want := `open_instance <>
set_param <command> </usr/bin/twilld>
append_param <env> <FLANNELD_IFACE=eth0>
append_param <env> <FLANNELD_ETCD_PASSWORD=a b$c>
set_param <file> <` + env + `>
set_param <respawn> <3600> <1> <0>
set_param <stderr> <1>
close_instance <>
`
	if string(out) != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}
