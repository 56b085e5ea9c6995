package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// unwanted matches files that no container of ours reads: manuals, translations, other
// character sets, and files for package management and logins.
var unwanted = regexp.MustCompile(`^(` + strings.Join([]string{
	`boot|home|media|mnt|opt|srv|usr/(games|include|local|src)`,
	`usr/share/(man|locale|lintian|info|bash-completion|bug|base-files|dict|misc|pixmaps|doc-base|initramfs-tools|gcc|gdb)`,
	`usr/share/doc/[^/]+/.*`, // except copyright, see wanted
	`usr/share/common-licenses/(AGPL|CC|OFL|BSL|GFDL).*`,
	`usr/lib/[^/]+/(gconv|audit)`, `usr/lib/locale`, `usr/lib/systemd`,
	`usr/lib/[^/]+/xtables/lib(ebt|arpt)_.*`, `usr/sbin/(ebtables|arptables).*`, `usr/sbin/(nfnl_osf)`,
	`usr/bin/(ld\.so|ldd|locale|localedef|getconf|getent|iconv|pldd|sotruss|sprof|tzselect|zdump|c_rehash)`,
	`usr/sbin/(iconvconfig|ldconfig|zic|update-.*)`,
	`etc/(default|dpkg|issue|issue\.net|profile\.d|skel|update-motd\.d|ld\.so\.conf|ld\.so\.conf\.d|ca-certificates|bindresvport\.blacklist|gai\.conf|networks|rpc|ethertypes|nftables\.conf)`,
	`var/(backups|cache|lib/misc|local|lock|log|mail|opt|run|spool).*`,
}, "|") + `)(/.*)?$`)

func wanted(name string) bool {
	return !unwanted.MatchString(name) || strings.HasPrefix(name, "usr/share/doc/") && path.Base(name) == "copyright"
}

// certificates is where programs look for trusted certificate authorities.
const certificates = "etc/ssl/certs/ca-certificates.crt"

// applets are the commands that busybox is linked as.
var applets = strings.Fields(`ash awk basename cat chmod clear cp cut date dd df dirname echo env expr false find
	grep head hostname id ip ip6 kill less ln ls md5sum mkdir mknod mktemp more mv nc nslookup od ping ping6 printf ps
	pwd readlink realpath rm rmdir route sed seq sh sha256sum sleep sort stat sync tail tar tee test timeout top
	touch tr traceroute true uname uniq vi wc wget which xargs`)

// debian builds the layer below ours from the packages in dir.
func debian(dir string) (tree, error) {
	packages, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return nil, err
	}
	if len(packages) == 0 {
		return nil, fmt.Errorf("%s has no packages: run scripts/fetch-image.sh", dir)
	}
	slices.Sort(packages)
	t := tree{}
	for _, p := range packages {
		if err := t.unpack(p); err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
	}
	t.trust()
	for _, a := range applets {
		if _, taken := t["usr/bin/"+a]; !taken {
			t.link("usr/bin/"+a, "busybox")
		}
	}
	for _, name := range []string{"bin", "sbin", "lib"} {
		t.link(name, "usr/"+name)
	}
	t.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"))
	t.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	t.file("etc/nsswitch.conf", 0o644, []byte("hosts: files dns\n"))
	t.link("var/run", "/run")
	return t, nil
}

// unpack adds a package: its files, and its entry for vulnerability scanners
// at the path where images without a package database have it.
func (t tree) unpack(deb string) error {
	err := dpkgDeb(deb, "--fsys-tarfile", func(r *tar.Reader) error { return t.read(r, wanted) })
	if err != nil {
		return err
	}
	control := tree{}
	err = dpkgDeb(deb, "--ctrl-tarfile", func(r *tar.Reader) error {
		return control.read(r, func(name string) bool { return name == "control" })
	})
	if err != nil {
		return err
	}
	name, _, _ := strings.Cut(filepath.Base(deb), "_")
	t.file("var/lib/dpkg/status.d/"+name, 0o644, control["control"].data)
	return nil
}

// dpkgDeb passes the archive that dpkg-deb prints to f.
func dpkgDeb(deb, option string, f func(*tar.Reader) error) error {
	cmd := exec.Command("dpkg-deb", option, deb)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: it is part of every Debian", err)
	}
	err = f(tar.NewReader(out))
	_, drained := io.Copy(io.Discard, out) // the archive's padding
	if wait := cmd.Wait(); wait != nil {
		return errors.Join(fmt.Errorf("%w: %s", wait, stderr.String()), err)
	}
	return errors.Join(err, drained)
}

// endOf treats the end of an archive as no error.
func endOf(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// trust puts the certificates of the authorities into one file, as the package does
// when it is installed.
func (t tree) trust() {
	const from = "usr/share/ca-certificates/"
	var names []string
	for name := range t {
		if strings.HasPrefix(name, from) {
			if strings.HasSuffix(name, ".crt") {
				names = append(names, name)
			} else {
				delete(t, name)
			}
		}
	}
	slices.Sort(names)
	var all []byte
	for _, name := range names {
		all = append(all, t[name].data...)
		delete(t, name)
	}
	t.file(certificates, 0o644, all)
}

// own builds the layer with this repository's programs, which are in dir, under the
// same paths as in flannel's images.
func own(dir, licence string) (tree, error) {
	t := tree{}
	for name, from := range map[string]string{
		"opt/bin/flanneld":       "twilld",
		"opt/bin/install-conf":   "install-conf",
		"flannel":                "flannel-cni",
		"usr/local/bin/twill":    "twill",
		"usr/lib/cni/bridge":     "bridge",
		"usr/lib/cni/host-local": "host-local",
		"usr/lib/cni/loopback":   "loopback",
		"usr/lib/cni/portmap":    "portmap",
	} {
		if err := t.program(name, filepath.Join(dir, from)); err != nil {
			return nil, err
		}
	}
	text, err := os.ReadFile(licence)
	if err != nil {
		return nil, err
	}
	t.file("usr/share/doc/twill/copyright", 0o644, text)
	t.link("usr/local/bin/twilld", "/opt/bin/flanneld")
	t.file("opt/bin/mk-docker-opts.sh", 0o755, dockerOpts)
	t.file("usr/sbin/xtables-choose", 0o755, chooseKind)
	for _, family := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			t.link("usr/sbin/"+family+verb, "xtables-choose")
		}
	}
	return t, nil
}
