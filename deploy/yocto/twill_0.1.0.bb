SUMMARY = "Pod network compatible with flannel"
DESCRIPTION = "twilld connects the pods of several hosts, by VXLAN or by its own fast UDP \
data plane, as a drop-in replacement for flanneld. The same as twilld-lite."
HOMEPAGE = "https://github.com/twillnet/twill"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://src/${GO_IMPORT}/LICENSE;md5=3b83ef96387f14655fc854ddc3c6bd57"

SRC_URI = "git://${GO_IMPORT}.git;protocol=https;nobranch=1;tag=v${PV};destsuffix=${GO_SRCURI_DESTSUFFIX}"

GO_IMPORT = "github.com/twillnet/twill"
GO_INSTALL = "${GO_IMPORT}/cmd/twilld"

inherit go-mod systemd

# The Go modules are fetched while it compiles; go.sum has their hashes.
do_compile[network] = "1"
export CGO_ENABLED = "0"
GOBUILDFLAGS:append = " -tags grpcnotrace,noembed,nokube,nobpf,nethttpomithttp2"

# Without inlining, twill is smaller, but a daemon would need more memory.
do_compile:append() {
    ${GO} install ${GOBUILDFLAGS} -gcflags=all=-l ${GO_IMPORT}/cmd/twill
}

SYSTEMD_SERVICE:${PN} = "twilld.service"

do_install:append() {
    src=${S}/src/${GO_IMPORT}
    install -d ${D}${systemd_system_unitdir} ${D}${sysconfdir}/twill
    sed 's,/usr/local/bin/,${bindir}/,g' $src/deploy/systemd/twilld.service \
        > ${D}${systemd_system_unitdir}/twilld.service
    install -m 0600 $src/deploy/packages/twilld.env ${D}${sysconfdir}/twill/twilld.env
    install -D -m 0644 $src/deploy/packages/sysctl.conf ${D}${nonarch_libdir}/sysctl.d/50-twill.conf
}

FILES:${PN} += "${nonarch_libdir}/sysctl.d"
CONFFILES:${PN} = "${sysconfdir}/twill/twilld.env"
RRECOMMENDS:${PN} = "kernel-module-tun kernel-module-vxlan iptables"

# The programs are static.
INSANE_SKIP:${PN} += "already-stripped"
