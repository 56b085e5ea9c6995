// Package yocto has no code: it holds the recipe for Yocto. bitbake is not at hand, so its
// statements about this repository are checked.
package yocto

import (
	"crypto/md5"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/version"
)

func TestRecipeIsOfThisRepository(t *testing.T) {
	text, err := os.ReadFile("twill_" + version.Release + ".bb")
	if err != nil {
		t.Fatal(err)
	}
	licence, err := os.ReadFile("../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	if sum := fmt.Sprintf("md5=%x", md5.Sum(licence)); !strings.Contains(string(text), sum) {
		t.Errorf("LICENSE has %s", sum)
	}
	for _, path := range regexp.MustCompile(`(?:\$src|\$\{GO_IMPORT\})/((?:deploy|cmd)/[\w./-]+)`).FindAllStringSubmatch(string(text), -1) {
		if _, err := os.Stat("../../" + path[1]); err != nil {
			t.Error(err)
		}
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, lite, _ := strings.Cut(string(makefile), "\nLITE  := ")
	lite, _, _ = strings.Cut(lite, "\n")
	if !strings.Contains(string(text), "-tags grpcnotrace,"+lite+`"`) {
		t.Errorf("it is not built with the tags of twilld-lite, %s", lite)
	}
	_, small, _ := strings.Cut(string(makefile), "\nSMALL := ")
	small, _, _ = strings.Cut(small, "\n")
	if !strings.Contains(string(text), " "+small+" ${GO_IMPORT}/cmd/twill\n") || !strings.Contains(string(text), `GO_INSTALL = "${GO_IMPORT}/cmd/twilld"`) {
		t.Errorf("twill is not built with %s, or the daemon is", small)
	}
	unit, err := os.ReadFile("../systemd/twilld.service")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(unit), "/usr/local/bin/") {
		t.Error("the unit has no path that the recipe replaces")
	}
}
