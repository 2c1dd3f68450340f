extension "x" {
  command  = "/no/such/program"
  checksum = "sha256:0000000000000000000000000000000000000000000000000000000000000000"
  sandbox  = "landlok"
  paths {
    read  = ["etc/x"]
    write = ["/var/lib/x"]
  }
}
driver "native" {}
