extension "x" {
  command  = "/bin/sh"
  checksum = env("NOT_SET_ANYWHERE")
}

driver "native" {}

driver "acme" {
  base = "native"

  bind "x" {
    phase "prestart" {}

    grant {
      mutate = "Process.labels"
    }
  }
}
