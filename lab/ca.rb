# The lab's CA, as `nodeproxy ca init` makes one.  Both machines must have the same, and neither can hand it to the other but through
# the machine that runs Vagrant; so that one makes it, with the OpenSSL that Vagrant's own Ruby has.  tests/unit/test_lab.py reads it back.
require "fileutils"
require "json"
require "openssl"

module NodeproxyLab
  TRUST_DOMAIN = "cluster.local"
  YEAR_S = 365 * 24 * 3600

  # Makes it in `folder` unless it is there already.
  def self.make_ca(folder)
    return if File.exist?(File.join(folder, "ca.json"))

    FileUtils.mkdir_p(folder, mode: 0o700)
    key = OpenSSL::PKey::EC.generate("prime256v1")
    write(folder, "ca-key.pem", private_pem(key))
    write(folder, "root-cert.pem", root(key).to_pem)
    write(folder, "ca.json", JSON.generate({ "trust_domain" => TRUST_DOMAIN }))
  end

  def self.write(folder, name, text)
    File.open(File.join(folder, name), "w", 0o600) { |file| file.write(text) }
  end

  # PKCS #8; what EC#to_pem writes is the older form.
  def self.private_pem(key)
    key.respond_to?(:private_to_pem) ? key.private_to_pem : key.to_pem
  end

  def self.root(key)
    made = OpenSSL::X509::Certificate.new
    made.version = 2 # X.509 version 3
    made.serial = OpenSSL::BN.rand(120)
    made.subject = made.issuer = OpenSSL::X509::Name.new([["O", TRUST_DOMAIN], ["CN", "nodeproxy lab #{made.serial.to_s(16).downcase[0, 16]}"]])
    made.not_before = Time.now - 300
    made.not_after = Time.now + (10 * YEAR_S)
    made.public_key = key
    extensions = OpenSSL::X509::ExtensionFactory.new(made, made)
    made.add_extension(extensions.create_extension("basicConstraints", "CA:TRUE", true))
    made.add_extension(extensions.create_extension("keyUsage", "keyCertSign, cRLSign", true))
    made.add_extension(extensions.create_extension("subjectKeyIdentifier", "hash"))
    made.sign(key, OpenSSL::Digest.new("SHA256"))
  end
end
